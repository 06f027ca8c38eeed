//go:build race

package flowlog

func init() { raceDetector = true }
