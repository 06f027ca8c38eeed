package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// chart is lines over an axis each, as SVG. It needs so little that a plotting
// library, with what comes with it, would be more than this file.
type chart struct {
	file, title, x, y string
	logX, logY        bool
	series            []series
}

type series struct {
	name   string
	points []point
}

type point struct{ x, y float64 }

func (c *chart) add(name string, points []point) {
	slices.SortFunc(points, func(a, b point) int {
		switch {
		case a.x < b.x:
			return -1
		case a.x > b.x:
			return 1
		}
		return 0
	})
	c.series = append(c.series, series{name, points})
}

const (
	width, height           = 720, 400
	left, right, up, bottom = 70, 130, 40, 50
)

// Told apart also by those who do not see red and green as different.
var colors = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7"}

func (c *chart) svg() string {
	var xs, ys []float64
	for _, s := range c.series {
		for _, p := range s.points {
			xs, ys = append(xs, p.x), append(ys, p.y)
		}
	}
	if len(xs) == 0 {
		return ""
	}
	horizontal := newAxis(xs, c.logX, left, width-right, !c.logX)
	vertical := newAxis(ys, c.logY, height-bottom, up, !c.logY)

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="15">%s</text>`+"\n", left, html.EscapeString(c.title))
	for _, t := range horizontal.ticks() {
		x := horizontal.at(t)
		fmt.Fprintf(&b, `<path d="M%.1f %d V%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x, up, height-bottom, x, height-bottom+18, tickText(t))
	}
	for _, t := range vertical.ticks() {
		y := vertical.at(t)
		fmt.Fprintf(&b, `<path d="M%d %.1f H%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y, width-right, left-6, y+4, tickText(t))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-10, html.EscapeString(c.x))
	fmt.Fprintf(&b, `<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (up+height-bottom)/2, html.EscapeString(c.y))
	for i, s := range c.series {
		color := colors[i%len(colors)]
		var path strings.Builder
		for j, p := range s.points {
			command := 'L'
			if j == 0 {
				command = 'M'
			}
			fmt.Fprintf(&path, "%c%.1f %.1f", command, horizontal.at(p.x), vertical.at(p.y))
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", path.String(), color)
		for _, p := range s.points {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", horizontal.at(p.x), vertical.at(p.y), color)
		}
		y := up + 16 + 20*i
		fmt.Fprintf(&b, `<path d="M%d %d h20" stroke="%s" stroke-width="2"/><text x="%d" y="%d">%s</text>`+"\n", width-right+10, y-4, color, width-right+36, y, html.EscapeString(s.name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// axis turns values into places.
type axis struct {
	low, high float64
	log       bool
	from, to  float64
}

func newAxis(values []float64, log bool, from, to float64, zero bool) axis {
	a := axis{slices.Min(values), slices.Max(values), log, from, to}
	if zero {
		a.low = 0
		a.high *= 1.05
	}
	if log {
		a.low, a.high = math.Pow(10, math.Floor(math.Log10(a.low))), math.Pow(10, math.Ceil(math.Log10(a.high)))
	}
	if a.low == a.high {
		a.high++
	}
	return a
}

func (a axis) at(v float64) float64 {
	share := (v - a.low) / (a.high - a.low)
	if a.log {
		share = math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return a.from + share*(a.to-a.from)
}

func (a axis) ticks() (t []float64) {
	if a.log {
		for v := a.low; v <= a.high*1.001; v *= 10 {
			t = append(t, v)
		}
		return t
	}
	step := math.Pow(10, math.Floor(math.Log10((a.high-a.low)/4)))
	for (a.high-a.low)/step > 8 {
		step *= 2
	}
	for v := a.low; v <= a.high; v += step {
		t = append(t, v)
	}
	return t
}

func tickText(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%.4g", v)
}
