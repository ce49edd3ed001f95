package streams_test

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/event"
	"github.com/millrace/millrace/streams"
)

// A sink stores its position beside its data, for example as text. Reading resumes at Next.
func ExampleApplied() {
	position := streams.Applied{
		Next:       43,
		Watermark:  event.Position{Transaction: 7, Sequence: 1002},
		AsOf:       time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC),
		Partitions: 8,
	}
	stored := position.String()
	restored, err := streams.ParseApplied(stored)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(stored)
	fmt.Println(restored.Next, restored.Watermark, restored == position)
	// Output:
	// 43 7.1002 1795953600000000 8 -
	// 43 7.1002 true
}
