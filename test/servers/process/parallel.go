package process

import (
	"flag"
	"strconv"
)

// Parallel lets n tests of the package run at the same time, on a machine with fewer processors
// too. TestMain calls it before it runs the tests. It is for packages whose tests wait for a broker
// most of the time: the default, one test for each processor, leaves the processors idle. The flag
// -parallel overrides it.
func Parallel(n int) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err)
	}
}
