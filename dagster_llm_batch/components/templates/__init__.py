"""Files that `dg scaffold defs` puts beside a component's YAML."""
