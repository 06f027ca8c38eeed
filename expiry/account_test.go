package expiry

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// in lists an account's keys, the one renewed least recently first, as the one who
// takes them out sees them.
func in(table *Table[string], kind int, account uint32) string {
	var keys []string
	for n := table.Count(kind, account); n > 0; n-- {
		if got := table.Count(kind, account); got != n {
			return fmt.Sprintf("%v, then %d keys instead of %d", keys, got, n)
		}
		oldest := table.Oldest(kind, account)
		keys = append(keys, oldest.Key)
		table.Delete(oldest.Key)
	}
	return fmt.Sprint(keys)
}

func TestAccounts(t *testing.T) {
	hour := after(time.Hour)
	for _, tt := range []struct {
		name             string
		does             func(*Table[string])
		byHolder, byName string
	}{
		{"as made", func(*Table[string]) {}, "[a b c d]", "[a b c]"},
		{"the first renewed", func(t *Table[string]) { t.Set("a", hour, Accounts{10, 1}) }, "[b c d a]", "[b c a]"},
		{"a middle one renewed", func(t *Table[string]) { t.Set("b", hour, Accounts{10, 1}) }, "[a c d b]", "[a c b]"},
		{"the last renewed", func(t *Table[string]) { t.Set("d", hour, Accounts{20, 1}) }, "[a b c d]", "[a b c]"},
		{"touched", func(t *Table[string]) { t.Touch("a", Accounts{10, 1}) }, "[b c d a]", "[b c a]"},
		{"for another name", func(t *Table[string]) { t.Set("b", hour, Accounts{20, 1}) }, "[a c d b]", "[a c]"},
		{"for another name and again for the first", func(t *Table[string]) {
			t.Touch("b", Accounts{20, 1})
			t.Set("b", hour, Accounts{10, 1})
		}, "[a c d b]", "[a c]"},
		{"for no name", func(t *Table[string]) { t.Set("a", hour, Accounts{Holder: 1}) }, "[b c d a]", "[b c]"},
		{"deleted", func(t *Table[string]) { t.Delete("a"); t.Delete("c") }, "[b d]", "[b]"},
		{"deleted and made anew", func(t *Table[string]) { t.Delete("a"); t.Set("a", hour, Accounts{10, 1}) }, "[b c d a]", "[b c a]"},
		{"another's", func(t *Table[string]) { t.Set("e", hour, Accounts{30, 2}) }, "[a b c d]", "[a b c]"},
		{"nobody's", func(t *Table[string]) { t.Set("e", hour, Accounts{}) }, "[a b c d]", "[a b c]"},
		{"adopted without a name", func(t *Table[string]) {
			t.Adopt("e", hour, Accounts{Holder: 1})
			t.Set("e", hour, Accounts{10, 1}) // of which nobody knows whether it was for this one
			t.Adopt("a", hour, Accounts{20, 2})
		}, "[a b c d e]", "[a b c]"},
		{"adopted is older than all", func(t *Table[string]) {
			t.Adopt("e", hour, Accounts{Holder: 1})
			t.Adopt("f", hour, Accounts{Holder: 1})
		}, "[f e a b c d]", "[a b c]"},
		{"restored is as before, and older than what is new", func(t *Table[string]) {
			t.Set("a", hour, Accounts{10, 1})
			t.Set("c", hour, Accounts{20, 1})
			ended := t.Clear()
			t.Set("e", hour, Accounts{10, 1})
			for _, e := range ended {
				t.Restore(e)
				t.Restore(e)
			}
		}, "[b d a c e]", "[b a e]"},
		{"one of another name, which is due", func(t *Table[string]) { t.Due(after(time.Minute), 1, nil) }, "[a b c]", "[a b c]"},
		{"all due", func(t *Table[string]) { t.Due(after(2*time.Hour), all, nil) }, "[]", "[]"},
		{"cleared", func(t *Table[string]) { t.Clear() }, "[]", "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, account := range []struct {
				kind   int
				number uint32
				want   string
			}{{Holder, 1, tt.byHolder}, {Name, 10, tt.byName}, {Holder, 0, "[]"}, {Name, 0, "[]"}} {
				table := NewTable[string](epoch)
				for _, k := range []string{"a", "b", "c"} {
					table.Set(k, hour, Accounts{10, 1})
				}
				table.Set("d", after(time.Second), Accounts{20, 1})
				tt.does(table)
				if got := in(table, account.kind, account.number); got != account.want {
					t.Errorf("in account %d of kind %d: %s, want %s", account.number, account.kind, got, account.want)
				}
				if n := table.Count(account.kind, account.number); n != 0 {
					t.Errorf("%d are left", n)
				}
			}
		})
	}
}

// What was cleared can be entered again as it was.
func TestEndedKnowsItsAccounts(t *testing.T) {
	table := NewTable[string](epoch)
	table.Set("a", after(time.Hour), Accounts{10, 1})
	table.Adopt("b", after(time.Hour), Accounts{Holder: 2})
	want := []Ended[string]{{"a", after(time.Hour), Accounts{10, 1}}, {"b", after(time.Hour), Accounts{Holder: 2}}}
	for _, ended := range [][]Ended[string]{table.Clear(), nil} {
		if ended == nil {
			table.Set("a", after(time.Hour), Accounts{10, 1})
			table.Adopt("b", after(time.Hour), Accounts{Holder: 2})
			ended = table.Due(after(2*time.Hour), all, nil)
		}
		slices.SortFunc(ended, func(a, b Ended[string]) int { return int(a.Key[0]) - int(b.Key[0]) })
		if !slices.EqualFunc(ended, want, func(a, b Ended[string]) bool {
			return a.Key == b.Key && a.Until.Equal(b.Until) && a.Of == b.Of
		}) {
			t.Errorf("got %v, want %v", ended, want)
		}
	}
}

// What is taken out long before it ends needs no memory until then: else whoever
// makes others go would fill it.
func TestDeletedNeedNoMemory(t *testing.T) {
	table := NewTable[int](epoch)
	const most = 1000
	for i := range 100_000 {
		of := Accounts{uint32(1 + i%7), 1}
		if table.Count(Holder, of[Holder]) == most {
			table.Delete(table.Oldest(Holder, of[Holder]).Key)
		}
		table.Set(i, after(24*time.Hour), of)
	}
	if n := table.nodes.made; n > most {
		t.Errorf("%d nodes for %d keys", n, most)
	}
	if n := len(table.accounts.newest[Name]); n != 7 {
		t.Errorf("%d accounts of names, want 7", n)
	}
	if got := len(table.Due(after(25*time.Hour), all, nil)); got != most {
		t.Errorf("%d are due, want %d", got, most)
	}
}

// However many keys there are, few have the same list.
func TestListsAreShort(t *testing.T) {
	table := NewTable[int](epoch)
	for n := 1; n <= 1<<17; n *= 2 {
		for i := n / 2; i < n; i++ {
			table.Set(i, after(time.Hour), Accounts{})
		}
		longest, most := 0, 0
		for i := range table.shards {
			x := &table.shards[i].index
			if most = max(most, len(x.heads)-x.count); x.count > len(x.heads) {
				t.Fatalf("%d nodes in %d lists", x.count, len(x.heads))
			}
			for _, i := range x.heads {
				long := 0
				for ; i != 0; i = table.nodes.at(i).same {
					long++
				}
				longest = max(longest, long)
			}
		}
		if longest > 20 || most > 1 {
			t.Errorf("of %d keys, %d have the same list, and there are up to %d lists more than keys", n, longest, most)
		}
		for i := range n {
			if !table.Covers(i, epoch) {
				t.Fatalf("of %d keys, %d is not found", n, i)
			}
		}
	}
}
