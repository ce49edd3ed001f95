package lake

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/millrace/millrace/internal/settings"
)

// Settings checks the lifecycle rules of the warehouse's bucket and reports those that remove files
// which tables need. A folder has no such rules. A bucket is not judged if it has none or does not
// permit reading them.
func (l *Lake) Settings(ctx context.Context) ([]settings.Fault, error) {
	return l.warehouse.settings(ctx)
}

// settings implements Lake.Settings.
func (w *warehouse) settings(ctx context.Context) ([]settings.Fault, error) {
	if w.aws == nil {
		return nil, nil
	}
	u, err := url.Parse(w.url)
	if err != nil {
		return nil, fmt.Errorf("warehouse: %w", err)
	}
	client := s3.NewFromConfig(*w.aws, func(o *s3.Options) {
		if w.s3.Endpoint != "" {
			o.BaseEndpoint, o.UsePathStyle = aws.String(w.s3.Endpoint), true
		}
	})
	answer, err := client.GetBucketLifecycleConfiguration(ctx,
		&s3.GetBucketLifecycleConfigurationInput{Bucket: aws.String(u.Host)})
	var refused smithy.APIError
	if errors.As(err, &refused) {
		return nil, nil // no rules, no permission, or not supported
	}
	if err != nil {
		return nil, fmt.Errorf("read the lifecycle rules of bucket %s: %w", u.Host, err)
	}
	var faults []settings.Fault
	for _, rule := range answer.Rules {
		faults = append(faults, ruleFaults(u.Host, strings.TrimPrefix(u.Path, "/"), rule)...)
	}
	return faults, nil
}

// ruleFaults checks a lifecycle rule against a table folder. Rules for incomplete uploads and old
// object versions are harmless: no table needs them.
func ruleFaults(bucket, folder string, rule types.LifecycleRule) []settings.Fault {
	if rule.Status != types.ExpirationStatusEnabled {
		return nil
	}
	prefix := aws.ToString(rule.Prefix) //nolint:staticcheck // the older form of a rule is still answered
	if f := rule.Filter; f != nil {
		prefix = aws.ToString(f.Prefix)
		if f.And != nil {
			prefix = aws.ToString(f.And.Prefix)
		}
		if f.Tag != nil || f.And != nil && len(f.And.Tags) > 0 {
			return nil // our objects have no tags
		}
	}
	below := folder
	if below != "" {
		below += "/"
	}
	// If neither prefix contains the other, the rule does not apply to tables.
	if !strings.HasPrefix(prefix, below) && !strings.HasPrefix(below, prefix) {
		return nil
	}
	fault := settings.Fault{
		Resource: "bucket " + bucket, Setting: fmt.Sprintf("lifecycle rule %q for %q", aws.ToString(rule.ID), prefix),
		Remedy: fmt.Sprintf("change the rule's prefix so that it does not match %q, or remove the rule", folder),
	}
	var faults []settings.Fault
	if e := rule.Expiration; e != nil && (aws.ToInt32(e.Days) > 0 || e.Date != nil) {
		fault.Value, fault.Want, fault.Fatal = "expires objects", "none that expires a table's files", true
		fault.Effect = "files that tables still need are deleted"
		faults = append(faults, fault)
	}
	for _, t := range rule.Transitions {
		// Only these classes make reads wait for a restore.
		archives := []types.TransitionStorageClass{
			types.TransitionStorageClassGlacier, types.TransitionStorageClassDeepArchive,
		}
		if !slices.Contains(archives, t.StorageClass) {
			continue
		}
		fault.Value, fault.Want = "moves objects to "+string(t.StorageClass), "none that archives a table's files"
		fault.Fatal = false
		fault.Effect = "files that tables still need cannot be read immediately"
		faults = append(faults, fault)
	}
	return faults
}
