"""Pure: values in, values out. No SDK, network, disk, clock, randomness or Dagster."""
