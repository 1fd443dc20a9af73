"""The Helm chart, made of the manifests that kustomize applies, so that both stay one."""
