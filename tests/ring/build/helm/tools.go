//go:build tools

// Package tools names what is built of the pinned module, so that go.mod keeps it.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
