package admin

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

func readGrantsQuery(v url.Values) (q GrantsQuery, err error) {
	q.Name, q.Client = v.Get("name"), v.Get("client")
	if text := v.Get("address"); text != "" {
		q.Address, err = ParsePrefix(text)
	}
	return q, err
}

// ParsePrefix reads a network or an address.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: %q is neither an address nor a network", ErrInvalid, text)
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func readExplainQuery(v url.Values) (q ExplainQuery, err error) {
	q.Name, q.Protocol, q.Interface, q.User, q.Unit = v.Get("name"), v.Get("protocol"), v.Get("interface"), v.Get("user"), v.Get("unit")
	if q.Address, err = readAddr(v, "address"); err != nil {
		return q, err
	}
	if q.Client, err = readAddr(v, "client"); err != nil {
		return q, err
	}
	if text := v.Get("port"); text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return q, fmt.Errorf("%w: %q is not a port", ErrInvalid, text)
		}
		q.Port = uint16(port)
	}
	if q.Name == "" && !q.Address.IsValid() {
		return q, fmt.Errorf("%w: a name or an address is missing", ErrInvalid)
	}
	return q, nil
}

func readAnswersQuery(v url.Values) (q AnswersQuery, err error) {
	q.Name = v.Get("name")
	if q.Address, err = readAddr(v, "address"); err != nil {
		return q, err
	}
	q.Since, err = readTime(v, "since")
	return q, err
}

func readAddr(v url.Values, key string) (addr netip.Addr, err error) {
	if text := v.Get(key); text != "" {
		if addr, err = netip.ParseAddr(text); err != nil {
			return addr, fmt.Errorf("%w: %s %q is not an address", ErrInvalid, key, text)
		}
	}
	return addr.Unmap().WithZone(""), nil
}

func readTime(v url.Values, key string) (at time.Time, err error) {
	if text := v.Get(key); text != "" {
		if at, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return at, fmt.Errorf("%w: %s %q is not a time as in RFC 3339", ErrInvalid, key, text)
		}
	}
	return at, nil
}
