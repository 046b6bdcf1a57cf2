"""The tools of this package's tests, for your own tests: an emulator of the providers, and contracts for providers."""
