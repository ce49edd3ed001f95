package commands_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/millrace/millrace/commands"
	"github.com/millrace/millrace/commands/catalog"
	"github.com/millrace/millrace/commands/eventstore/sqlite"
	"github.com/millrace/millrace/event"
	catalogv1 "github.com/millrace/millrace/gen/millrace/catalog/v1"
	eventv1 "github.com/millrace/millrace/gen/millrace/event/v1"
)

// A repeated command returns its first answer and stores nothing.
func ExampleDo() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "millrace")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	store, err := sqlite.Open(ctx, filepath.Join(dir, "catalog.db"), event.Product)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // the folder is removed anyway

	products := commands.NewRunner(store, event.Product, catalog.Decider())
	for range 2 {
		req := connect.NewRequest(&catalogv1.ListProductRequest{Sku: "MUG-1", Title: "Enamel mug"})
		req.Header().Set(commands.HeaderIdempotencyKey, "first-mug")
		list := catalog.List{SKU: "MUG-1", Title: "Enamel mug", At: time.Unix(0, 0)}
		answer, err := commands.Do(ctx, req, products.On("MUG-1", list),
			func(_ catalog.State, r *eventv1.Receipt) *catalogv1.ListProductResponse {
				return &catalogv1.ListProductResponse{Receipt: r}
			})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("version", answer.Msg.GetReceipt().GetVersion(), "replayed", answer.Msg.GetReceipt().GetReplayed())
	}
	// Output:
	// version 1 replayed false
	// version 1 replayed true
}
