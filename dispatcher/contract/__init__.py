"""The contract: delivery events in, feedback payloads out, and the values that travel between the stages."""
