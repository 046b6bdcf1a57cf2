"""What tests of this package use, for tests of yours: an emulator of the providers, and contracts to hold them to."""
