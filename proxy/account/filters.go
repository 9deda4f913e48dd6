package account

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/matrix-mls/matrix-mls/client/store"
)

func filterKey(name string) string { return "proxy/filter/" + name }

// KeepFilter keeps what a client wants to be told, under the name that the client
// is given for it.
func (a *Account) KeepFilter(ctx context.Context, name string, filter json.RawMessage) error {
	return a.st.PutKV(ctx, filterKey(name), filter)
}

// Filter finds a client's filter, nil if there is none of that name.
func (a *Account) Filter(ctx context.Context, name string) (json.RawMessage, error) {
	raw, err := a.st.GetKV(ctx, filterKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("account: filter %s: %w", name, err)
	}
	return raw, nil
}
