//go:build tools

// Package sbom pins the command that writes the bill of materials, apart from the service's own modules.
package sbom

import _ "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod"
