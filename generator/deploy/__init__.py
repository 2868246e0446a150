"""Manifests for Kubernetes and KServe, made of what the repository says: values -> dictionaries -> YAML."""
