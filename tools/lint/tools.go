//go:build tools

// Package lint pins the linter, apart from the service's own modules.
package lint

import _ "github.com/golangci/golangci-lint/v2/cmd/golangci-lint"
