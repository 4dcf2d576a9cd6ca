"""Jobs, the arrival sensor, and the nightly schedule."""
