package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"path/filepath"
	"strings"

	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// File is an attachment to send.
type File struct {
	Name string
	MIME string // guessed from Name if empty
	Body io.Reader
	// Receipts asks for receipts, as in SendOptions.
	Receipts bool
}

// SendFile encrypts a file with a key of its own (Matrix specification,
// "Sending encrypted attachments"), uploads it and sends the key to the group.
func (c *Client) SendFile(ctx context.Context, roomID id.RoomID, f File) (id.EventID, error) {
	data, err := io.ReadAll(io.LimitReader(f.Body, c.limits.FileSize+1))
	if err != nil {
		return "", fmt.Errorf("client: read %s: %w", f.Name, err)
	}
	if int64(len(data)) > c.limits.FileSize {
		return "", fmt.Errorf("client: %s has more than %d bytes: raise Limits.FileSize if the homeserver takes it", f.Name, c.limits.FileSize)
	}
	mimeType := f.MIME
	if mimeType == "" {
		mimeType = mime.TypeByExtension(filepath.Ext(f.Name))
	}
	if mimeType == "" {
		mimeType = "application/octet-stream"
	}
	size := len(data)
	file := attachment.NewEncryptedFile()
	file.EncryptInPlace(data)
	mxc, err := c.uploadRetrying(ctx, data)
	if err != nil {
		return "", fmt.Errorf("client: upload %s: %w", f.Name, err)
	}
	return c.SendWith(ctx, roomID, event.EventMessage.Type, &event.MessageEventContent{
		MsgType: messageTypeOf(mimeType), Body: f.Name, FileName: f.Name,
		Info: &event.FileInfo{MimeType: mimeType, Size: size},
		File: &event.EncryptedFileInfo{EncryptedFile: *file, URL: id.ContentURIString(mxc)},
	}, SendOptions{Receipts: f.Receipts})
}

func messageTypeOf(mimeType string) event.MessageType {
	switch kind, _, _ := strings.Cut(mimeType, "/"); kind {
	case "image":
		return event.MsgImage
	case "audio":
		return event.MsgAudio
	case "video":
		return event.MsgVideo
	}
	return event.MsgFile
}

// uploadRetrying uploads and waits as long as the homeserver asks us to.
func (c *Client) uploadRetrying(ctx context.Context, data []byte) (string, error) {
	for {
		mxc, err := c.hs.Upload(ctx, data, "application/octet-stream")
		var limit *RateLimitError
		if !errors.As(err, &limit) {
			return mxc, err
		}
		if err := sleep(ctx, limit.RetryAfter); err != nil {
			return "", err
		}
	}
}

// DownloadFile fetches and decrypts the attachment of a message. A file that
// is not the one its sender encrypted is refused.
func (c *Client) DownloadFile(ctx context.Context, msg *Message) (*event.MessageEventContent, []byte, error) {
	content := new(event.MessageEventContent)
	if err := json.Unmarshal(msg.Content, content); err != nil {
		return nil, nil, fmt.Errorf("client: attachment of %s: %w", msg.EventID, err)
	}
	if content.File == nil {
		return nil, nil, fmt.Errorf("client: %s carries no encrypted file", msg.EventID)
	}
	for {
		data, err := c.hs.Download(ctx, string(content.File.URL), c.limits.FileSize)
		var limit *RateLimitError
		if errors.As(err, &limit) {
			if err := sleep(ctx, limit.RetryAfter); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("client: attachment of %s: %w", msg.EventID, err)
		}
		if err := content.File.DecryptInPlace(data); err != nil {
			return nil, nil, fmt.Errorf("client: attachment of %s: %w", msg.EventID, err)
		}
		return content, bytes.Clone(data), nil
	}
}
