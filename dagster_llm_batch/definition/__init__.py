"""User definitions: a labeling, and the rules of a deployment."""
