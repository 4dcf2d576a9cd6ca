"""Jobs, the sensors, and the nightly schedule."""
