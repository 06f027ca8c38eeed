package names

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLine is more than the longest name needs with each of its bytes escaped,
// and leaves room for a comment.
const maxLine = 4096

// Read makes a list of the patterns in a text, one a line. A # starts a comment,
// also behind a pattern, and blank lines are nothing. Its error names the first
// line that is wrong, and what to write instead.
func Read(r io.Reader) (*List, error) {
	var b builder
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, maxLine), maxLine)
	number := 0
	for lines.Scan() {
		number++
		line := lines.Bytes()
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff")) // editors on Windows
		}
		line = bytes.TrimSpace(line[:comment(line)])
		if len(line) == 0 {
			continue
		}
		if err := b.add(line); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", number, quote(line), err)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("line %d is longer than %d bytes: write one pattern on a line", number+1, maxLine-1)
	} else if err != nil {
		return nil, err
	}
	return b.list(), nil
}

// comment is where a line's comment starts, or its end.
func comment(line []byte) int {
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '#':
			return i
		}
	}
	return len(line)
}
