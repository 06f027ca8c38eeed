package why

import (
	"fmt"
	"strings"
)

// Number is so many of what a word says: "1 packet" or "2 packets".
func Number[N int | uint64](n N, word string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(word, "s"):
		word += "es"
	default:
		word += "s"
	}
	return fmt.Sprint(n, " ", word)
}
