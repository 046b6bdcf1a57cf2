"""Batch inference on Amazon Bedrock, by way of S3."""
