package lake

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	s3server "github.com/millrace/millrace/test/servers/s3"

	"github.com/millrace/millrace/internal/settings"
)

// A lifecycle rule that deletes a table's files is reported. Other rules, and stores without rules,
// are not.
func TestSettingsOfBucket(t *testing.T) {
	t.Parallel()
	rule := func(filter, action string) string {
		return fmt.Sprintf(`<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status>%s%s</Rule></LifecycleConfiguration>`, filter, action)
	}
	const expires = "<Expiration><Days>30</Days></Expiration>"
	for name, c := range map[string]struct {
		status int
		body   string
		faults int
		fatal  bool
	}{
		"no rules":                    {404, `<Error><Code>NoSuchLifecycleConfiguration</Code></Error>`, 0, false},
		"no right to look":            {403, `<Error><Code>AccessDenied</Code></Error>`, 0, false},
		"rules are unknown":           {501, `<Error><Code>NotImplemented</Code></Error>`, 0, false},
		"expires everything":          {200, rule("<Filter></Filter>", expires), 1, true},
		"expires the lake":            {200, rule("<Filter><Prefix>shop/</Prefix></Filter>", expires), 1, true},
		"expires a part of the lake":  {200, rule("<Filter><Prefix>shop/lake/millrace.db/</Prefix></Filter>", expires), 1, true},
		"in the older form":           {200, rule("<Prefix>shop</Prefix>", expires), 1, true},
		"by prefix and size":          {200, rule("<Filter><And><Prefix>shop</Prefix><ObjectSizeGreaterThan>9</ObjectSizeGreaterThan></And></Filter>", expires), 1, true},
		"expires something else":      {200, rule("<Filter><Prefix>logs/</Prefix></Filter>", expires), 0, false},
		"expires a neighbour":         {200, rule("<Filter><Prefix>shop/lake2</Prefix></Filter>", expires), 0, false},
		"expires what is tagged":      {200, rule("<Filter><Tag><Key>a</Key><Value>b</Value></Tag></Filter>", expires), 0, false},
		"archives":                    {200, rule("<Filter></Filter>", "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>"), 1, false},
		"moves to a cheaper class":    {200, rule("<Filter></Filter>", "<Transition><Days>1</Days><StorageClass>STANDARD_IA</StorageClass></Transition>"), 0, false},
		"ends uploads":                {200, rule("<Filter></Filter>", "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload>"), 0, false},
		"expires old versions only":   {200, rule("<Filter></Filter>", "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>"), 0, false},
		"a rule that is switched off": {200, `<LifecycleConfiguration><Rule><ID>r</ID><Status>Disabled</Status><Filter></Filter>` + expires + `</Rule></LifecycleConfiguration>`, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, asked := r.URL.Query()["lifecycle"]; !asked || r.URL.Path != "/bucket" {
					t.Errorf("asked %s %s", r.Method, r.URL)
				}
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer store.Close()
			w, err := openBucket(t.Context(), "s3://bucket/shop/lake", S3{Endpoint: store.URL, Region: "us-east-1", AccessKey: "a", SecretKey: "b"})
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			faults, err := w.settings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(faults) != c.faults || (settings.Refuse(faults) != nil) != c.fatal {
				t.Errorf("faults %v", faults)
			}
		})
	}
}

// A real store and a folder are checked without an error.
func TestSettingsOfWarehouses(t *testing.T) {
	t.Parallel()
	store := storeForSettings.Config(t)
	l, err := Open(t.Context(), Config{
		Warehouse: fmt.Sprintf("s3://%s/settings", store.Bucket), Catalog: filepath.Join(t.TempDir(), "catalog.db"), Logger: slog.New(slog.DiscardHandler),
		S3: S3{Endpoint: store.Endpoint, Region: store.Region, AccessKey: store.AccessKey, SecretKey: store.SecretKey},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	if faults, err := l.Settings(t.Context()); err != nil || len(faults) > 0 {
		t.Errorf("faults %v, %v", faults, err)
	}
}

var storeForSettings s3server.Server
