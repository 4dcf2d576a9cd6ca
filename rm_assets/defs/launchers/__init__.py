"""Where jobs run: on this machine, in a Kubernetes pod, or on a Ray cluster."""
