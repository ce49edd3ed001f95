package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// AddUser adds an account to the secure listener, for SCRAM-SHA-512.
func (c *Cluster) AddUser(ctx context.Context, name, password string) error {
	return c.withAdmin(func(admin *kadm.Client) error {
		const iterations = 4096 // the least that Kafka accepts
		altered, err := admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{
			User: name, Mechanism: kadm.ScramSha512, Iterations: iterations, Password: password,
		}})
		return errors.Join(err, altered.Error())
	})
}

// Allow gives users rights. It takes the arguments of kafka-acls.sh.
func (c *Cluster) Allow(ctx context.Context, arguments ...string) error {
	values := map[string][]string{}
	for i := 0; i < len(arguments); i++ {
		switch name := arguments[i]; name {
		case "--add":
		case "--allow-principal", "--operation", "--topic", "--group", "--transactional-id", "--resource-pattern-type":
			if i++; i == len(arguments) {
				return fmt.Errorf("%s has no value", name)
			}
			values[name] = append(values[name], arguments[i])
		default:
			return fmt.Errorf("%s is not supported: add it to Allow", name)
		}
	}
	var operations []kadm.ACLOperation
	for _, name := range values["--operation"] {
		o, err := kmsg.ParseACLOperation(name)
		if err != nil {
			return fmt.Errorf("--operation %s: %w", name, err)
		}
		operations = append(operations, o)
	}
	b := kadm.NewACLs().Allow(values["--allow-principal"]...).AllowHosts("*").Operations(operations...).
		MaybeTopics(values["--topic"]...).MaybeGroups(values["--group"]...).
		MaybeTransactionalIDs(values["--transactional-id"]...).ResourcePatternType(kadm.ACLPatternLiteral)
	if pattern := values["--resource-pattern-type"]; len(pattern) > 0 {
		p, err := kmsg.ParseACLResourcePatternType(pattern[0])
		if err != nil {
			return fmt.Errorf("--resource-pattern-type %s: %w", pattern[0], err)
		}
		b.ResourcePatternType(p)
	}
	return c.withAdmin(func(admin *kadm.Client) error {
		created, err := admin.CreateACLs(ctx, b)
		for _, one := range created {
			err = errors.Join(err, one.Err)
		}
		if err == nil && len(created) == 0 {
			err = errors.New("no right was given")
		}
		return err
	})
}
