package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/destination-guard/coredns-ip-destination-guard/why"
)

// table writes rows in columns.
func table(w io.Writer, head []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = plain(row[i])
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	t.Flush()
}

// plain leaves nothing in a text that could steer a terminal: what the guard writes has
// come from the network in part.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, text)
}

// left is how long until a moment.
func left(now, until time.Time) string { return why.Round(until.Sub(now)).String() }

// ago is how long since a moment.
func ago(now, at time.Time) string { return why.Round(now.Sub(at)).String() + " ago" }

// counted is a number of packets, and their bytes.
func counted(packets, bytes uint64) string {
	return why.Number(packets, "packet") + ", " + size(bytes)
}

func size(bytes uint64) string {
	const units = "kMGTPE"
	if bytes < 1000 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), -1
	for value >= 1000 {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, units[unit])
}
