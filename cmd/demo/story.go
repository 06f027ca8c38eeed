package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// story is what the reader sees.
type story struct {
	out    io.Writer
	colour bool
	start  time.Time // of the part
	steps  int
	err    error // what did not go as told; nothing is told after it
}

const (
	columns = 78
	indent  = "           " // of what belongs to a step: right of its time
)

// part begins a part of the story.
func (s *story) part(title string) {
	s.print("\n" + s.paint(bold, title) + "\n")
	s.start = time.Now()
}

// say prints a paragraph.
func (s *story) say(text string) { s.print("\n" + wrap(text, "") + "\n") }

// show prints lines as they are, behind a margin.
func (s *story) show(lines, margin string) {
	s.print("\n")
	for line := range strings.Lines(lines) {
		s.print(strings.TrimRight(margin+line, " \n") + "\n")
	}
}

// step says what happens, lets it happen, and says what came of it. An error
// means that it did not go as told.
func (s *story) step(what string, do func() (outcome, error)) {
	if s.err != nil {
		return
	}
	s.steps++
	at := fmt.Sprintf("%6.1f s   ", time.Since(s.start).Seconds())
	s.print("\n" + s.paint(dim, at) + strings.TrimPrefix(wrap(what, indent), indent) + "\n")
	got, err := do()
	if err != nil {
		s.err = fmt.Errorf("step %d did not go as told:\n  %s\n  %w", s.steps, what, err)
		return
	}
	text := wrap(fmt.Sprintf("%-8s %s", got.word, got.detail), indent)
	s.print(strings.Replace(text, got.word, s.paint(got.colour, got.word), 1) + "\n")
}

func (s *story) print(text string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.out, text)
	}
}

// outcome is what came of a step, in one word and a line.
type outcome struct{ word, colour, detail string }

func isRefused(detail string) outcome  { return outcome{"refused", red, detail} }
func isOpen(detail string) outcome     { return outcome{"open", green, detail} }
func told(word, detail string) outcome { return outcome{word, bold, detail} }

const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	plain = "\x1b[0m"
)

func (s *story) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return colour + text + plain
}

// isTerminal reports whether f shows colours, and whoever looks at it wants them
// (no-color.org).
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// wrap breaks text between words, behind the indent. Runs of spaces stay.
func wrap(text, indent string) string {
	var lines []string
	line, empty := indent, true
	for word := range strings.SplitSeq(text, " ") {
		switch {
		case empty:
			line += word
		case len(line)+1+len(word) > columns:
			lines = append(lines, line)
			line = indent + word
		default:
			line += " " + word
		}
		empty = false
	}
	return strings.Join(append(lines, line), "\n")
}
