package restcatalog_test

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/millrace/millrace/test/servers/process"
)

// With an address and a credential, PyIceberg and DuckDB can do what their users do with a catalog.
func TestOutsideClients(t *testing.T) {
	t.Parallel()
	interpreter := process.Python(t)
	for name, fresh := range map[string]func(testing.TB) *fixture{"folder": onSQLite, "s3": onS3, "postgres": onPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := fresh(t)
			guarded := guarded(t)
			p.Access.Callers, p.Access.Rights = guarded.Access.Callers, guarded.Access.Rights
			p.serve(t)
			cmd := exec.CommandContext(t.Context(), interpreter, "testdata/client.py", p.url, "anna:"+anna)
			cmd.Env = append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true")
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s\n%s", err, said.Bytes(), p.log.String())
			}
		})
	}
}
