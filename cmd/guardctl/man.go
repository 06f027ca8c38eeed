package main

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the man pages, for make install.
func (g *guardctl) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write the man pages into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: works(func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			released := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC) // the same pages each time
			return doc.GenManTree(cmd.Root(), &doc.GenManHeader{
				Section: "8", Source: "ipdestinationguard " + strings.TrimSpace(version), Manual: "System Administration", Date: &released,
			}, args[0])
		}),
	}
}
