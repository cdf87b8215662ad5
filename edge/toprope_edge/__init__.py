"""The agent on the device: fetches, verifies, tries out and runs models, and falls back to the cloud."""
