"""Bedrock's wire and the part of S3 that it needs, from AWS's documents."""
