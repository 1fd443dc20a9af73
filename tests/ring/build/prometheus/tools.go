//go:build tools

// Package tools names what is built of the pinned modules, so that go.mod keeps them.
package tools

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
	_ "github.com/prometheus/prometheus/cmd/promtool"
)
