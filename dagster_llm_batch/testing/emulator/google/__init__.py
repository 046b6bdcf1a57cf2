"""The wires of the Gemini API, Vertex AI, Cloud Storage and BigQuery, from Google's documents."""
