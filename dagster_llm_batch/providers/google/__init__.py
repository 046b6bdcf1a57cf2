"""Google's two services: batches of the Gemini API, and of Vertex AI by way of Cloud Storage or BigQuery."""
