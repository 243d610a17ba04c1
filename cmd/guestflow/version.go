package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if c.json {
				return c.printJSON(
					map[string]string{
						"version":  version,
						"commit":   commit,
						"go":       runtime.Version(),
						"platform": runtime.GOOS + "/" + runtime.GOARCH,
					},
				)
			}
			c.printf("guestflow %s (commit %s, %s, %s/%s)", version, commit, runtime.Version(), runtime.GOOS,
				runtime.GOARCH)
			return nil
		},
	}
}
