// Package spelling guesses what somebody meant to write in a Corefile.
package spelling

import (
	"fmt"
	"slices"
	"strings"
)

// Hint says what is wrong with an option that a block does not have: it is a directive of CoreDNS, and so the block may
// have no end; or it is like one of the block's options; or it is like none of them.
func Hint(word string, options, directives []string, begins string) string {
	if slices.Contains(directives, word) {
		return fmt.Sprintf("that is a directive of CoreDNS: is the } missing that ends the block which begins at %s?", begins)
	}
	if nearest := Nearest(word, options); nearest != "" {
		return fmt.Sprintf("did you mean %s?", nearest)
	}
	return "there are " + strings.Join(options, ", ")
}

// Nearest is the one of some words that is most like what was written, or nothing if none is: with a third of its letters
// wrong at most, or with nothing but an end missing.
func Nearest(written string, words []string) (nearest string) {
	written = strings.ToLower(written)
	least := 0
	for _, word := range words {
		lower := strings.ToLower(word)
		d := distance(written, lower)
		near := d <= max(1, len(word)/3) || len(written) >= 3 && strings.HasPrefix(lower, written)
		if near && (nearest == "" || d < least) {
			nearest, least = word, d
		}
	}
	return nearest
}

// distance is how many letters are wrong, too many, missing, or the wrong way round with the next.
func distance(a, b string) int {
	var before, last []int // rows of the table, for a without its last two letters, and one
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			wrong := last[j]
			if a[i] != b[j] {
				wrong++
			}
			row[j+1] = min(wrong, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
