"""Near copies: the audit of a plan, and the decision whether they share the answers of their leaders."""
