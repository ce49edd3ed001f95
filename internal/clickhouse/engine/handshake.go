package engine

import (
	"net/url"
	"strconv"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/millrace/millrace/internal/clickhouse"
)

// The driver clickhouse-go begins a connection with this query. It decodes the answer in the
// revision of the native protocol that it announces, and all later answers in the revision that
// this answer contains. chdb writes revision 0 and cannot be told another one, so this answer is
// written here and says 0.
const handshakeQuery = "SELECT displayName(), version(), revision(), timezone()"

// handshake returns the answer to handshakeQuery, if that is the query of a request that announces
// a revision.
func handshake(c *connection, r request) ([]byte, bool, error) {
	if r.query != handshakeQuery || r.format != "Native" || r.revision == 0 {
		return nil, false, nil
	}
	version, err := c.run("SELECT version()", "TSVRaw")
	if err != nil {
		return nil, true, err
	}
	var name, number, zone proto.ColStr
	var revision proto.ColUInt32
	name.Append("millrace")
	number.Append(string(trimLine(version)))
	revision.Append(0)
	zone.Append("UTC")
	var b proto.Buffer
	block := proto.Block{Info: proto.BlockInfo{BucketNum: -1}, Columns: 4, Rows: 1}
	err = block.EncodeBlock(&b, r.revision, proto.Input{
		{Name: "displayName()", Data: name}, {Name: "version()", Data: number},
		{Name: "revision()", Data: revision}, {Name: "timezone()", Data: zone},
	})
	return b.Buf, true, err
}

// revisionOf returns the revision of the native protocol that a request announces, or 0.
func revisionOf(params url.Values) (int, error) {
	text := params.Get("client_protocol_version")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return 0, &clickhouse.Error{
			Code: clickhouse.CodeBadArguments, Name: "BAD_ARGUMENTS",
			Message: "client_protocol_version: " + strconv.Quote(text) + " is not a number",
		}
	}
	return int(n), nil
}

// trimLine removes the line break at the end of a text.
func trimLine(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}
