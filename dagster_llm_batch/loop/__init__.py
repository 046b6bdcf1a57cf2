"""The way of a submission: plan, send, poll, collect, retry, settle and label."""
