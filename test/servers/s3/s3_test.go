package s3_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/millrace/millrace/test/servers/process"
	"github.com/millrace/millrace/test/servers/s3"
)

var shared s3.Server

func TestMain(m *testing.M) {
	os.Exit(process.RunTests(m, shared.Stop))
}

// client returns Amazon's own client, without retries.
func client(c s3.Config, endpoint string) *awss3.Client {
	return awss3.New(awss3.Options{
		Region: c.Region, BaseEndpoint: &endpoint, UsePathStyle: true, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
}

func put(ctx context.Context, c *awss3.Client, bucket, key, text string) error {
	_, err := c.PutObject(ctx, &awss3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader([]byte(text))})
	return err
}

func get(ctx context.Context, c *awss3.Client, bucket, key string) (string, error) {
	out, err := c.GetObject(ctx, &awss3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(out.Body)
	return string(b), errors.Join(err, out.Body.Close())
}

// TestServer checks that data survives a kill, that a wrong secret is rejected, and that a client
// of a frozen server waits.
func TestServer(t *testing.T) {
	t.Parallel()
	var own s3.Server
	begun := time.Now()
	c := own.Config(t)
	defer func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	}()
	mb, err := own.ResidentMB()
	t.Logf("ready after %v, %d MB, %v", time.Since(begun).Round(time.Millisecond), mb, err)
	ctx := t.Context()
	mine := client(c, c.Endpoint)
	if err := put(ctx, mine, c.Bucket, "folder/a", "text"); err != nil {
		t.Fatal(err)
	}
	wrong := c
	wrong.SecretKey = "guess"
	if err := put(ctx, client(wrong, c.Endpoint), c.Bucket, "folder/a", "other"); err == nil {
		t.Error("a wrong secret is accepted")
	}
	if err := own.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := get(ctx, mine, c.Bucket, "folder/a"); err == nil {
		t.Error("a dead server answers")
	}
	if err := own.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have, err := get(ctx, mine, c.Bucket, "folder/a"); err != nil || have != "text" {
		t.Errorf("after the restart: %q, %v", have, err)
	}
	if err := own.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := get(short, mine, c.Bucket, "folder/a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused server: %v", err)
	}
	if err := own.Resume(); err != nil {
		t.Fatal(err)
	}
	if have, err := get(ctx, mine, c.Bucket, "folder/a"); err != nil || have != "text" {
		t.Errorf("after the pause: %q, %v", have, err)
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	c := shared.Config(t)
	p, err := s3.NewProxy(c.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // the test is over
	ctx := t.Context()
	direct, through := client(c, c.Endpoint), client(c, p.Endpoint)
	large := strings.Repeat("0123456789", 600_000)
	if err := put(ctx, through, c.Bucket, "a", large); err != nil {
		t.Fatal(err)
	}
	if have, err := get(ctx, through, c.Bucket, "a"); err != nil || have != large {
		t.Fatalf("%d bytes, %v", len(have), err)
	}

	var calls atomic.Int64
	next := s3.Fault{}
	p.Break(func(r *http.Request) s3.Fault {
		if r.Method != http.MethodPut {
			return s3.Fault{}
		}
		calls.Add(1)
		return next
	})
	for status, key := range map[int]string{500: "b", 503: "c"} {
		next = s3.Fault{Status: status}
		var answer interface{ HTTPStatusCode() int }
		if err := put(ctx, through, c.Bucket, key, "text"); !errors.As(err,
			&answer) || answer.HTTPStatusCode() != status {
			t.Errorf("error %v, want %d", err, status)
		}
		if _, err := get(ctx, direct, c.Bucket, key); err == nil {
			t.Errorf("the server received the call that was answered with %d", status)
		}
	}
	next = s3.Fault{Lost: true}
	if err := put(ctx, through, c.Bucket, "d", "text"); err == nil {
		t.Error("a call with a lost answer succeeded")
	}
	if have, err := get(ctx, direct, c.Bucket, "d"); err != nil || have != "text" {
		t.Errorf("the object whose answer was lost: %q, %v", have, err)
	}
	next = s3.Fault{Delay: 200 * time.Millisecond}
	begun := time.Now()
	if err := put(ctx, through, c.Bucket, "e", "text"); err != nil || time.Since(begun) < next.Delay {
		t.Errorf("a slow call: %v after %v", err, time.Since(begun))
	}
	p.Break(nil)
	if err := put(ctx, through, c.Bucket, "f", "text"); err != nil {
		t.Error(err)
	}
	if calls.Load() != 4 {
		t.Errorf("%d calls were offered for a fault, want 4", calls.Load())
	}
}
