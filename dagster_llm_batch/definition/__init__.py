"""What a person defines: a labeling, and the rules of a deployment."""
