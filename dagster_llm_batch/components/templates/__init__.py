"""Files that `dg scaffold defs` puts next to a component's YAML."""
