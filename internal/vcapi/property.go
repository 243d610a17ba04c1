package vcapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
)

// properties are those of one object, by path, as they came.
type properties map[string]json.RawMessage

type propertySpec struct {
	TypeName string   `json:"_typeName"`
	Type     string   `json:"type"`
	PathSet  []string `json:"pathSet"`
}

type traversalSpec struct {
	TypeName string `json:"_typeName"`
	Type     string `json:"type"`
	Path     string `json:"path"`
}

type objectSpec struct {
	TypeName  string          `json:"_typeName"`
	Obj       moRef           `json:"obj"`
	Skip      *bool           `json:"skip,omitempty"`
	SelectSet []traversalSpec `json:"selectSet,omitempty"`
}

type filterSpec struct {
	TypeName  string         `json:"_typeName"`
	PropSet   []propertySpec `json:"propSet"`
	ObjectSet []objectSpec   `json:"objectSet"`
}

func propertiesOf(kind string, paths []string) propertySpec {
	return propertySpec{TypeName: "PropertySpec", Type: kind, PathSet: paths}
}

// retrieve reads properties of objects of one kind. Properties that this vCenter does not have are left out; of several
// objects, those that it does not show. Where a response is too large, it reads fewer objects at a time, and of one
// that is too large by itself each property alone.
func (c *Client) retrieve(
	ctx context.Context, kind string, paths []string, ids ...string,
) (map[string]properties, error) {
	all, err := c.retrieveOnce(ctx, kind, paths, ids)
	switch {
	case !errors.Is(err, ErrTooLarge):
		return all, err
	case len(ids) == 1:
		props, parts := c.retrieveParts(ctx, kind, paths, ids[0])
		if props == nil {
			return nil, cmp.Or(parts, err)
		}
		return map[string]properties{ids[0]: props}, nil
	}

	all = make(map[string]properties, len(ids))
	for _, some := range [][]string{ids[:len(ids)/2], ids[len(ids)/2:]} {
		half, err := c.retrieve(ctx, kind, paths, some...)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, half)
	}

	return all, nil
}

// unreadKey is, among the properties of an object, the list of those that were too large to be read.
const unreadKey = "…unread"

// taskParts are the members of a Task's info, read one by one where it is too large as a whole.
var taskParts = []string{
	"info.key",
	"info.task",
	"info.name",
	"info.descriptionId",
	"info.entity",
	"info.state",
	"info.reason",
	"info.progress",
	"info.cancelable",
	"info.queueTime",
	"info.startTime",
	"info.completeTime",
	"info.error",
}

// retrieveParts reads each property of one object alone. nil means that not one of them could be read.
func (c *Client) retrieveParts(ctx context.Context, kind string, paths []string, id string) (properties, error) {
	if kind == "Task" {
		paths = taskParts
	}

	var props properties
	var large []string
	for _, path := range paths {
		one, err := c.retrieveOnce(ctx, kind, []string{path}, []string{id})
		switch {
		case errors.Is(err, ErrTooLarge):
			large = append(large, path)
			continue
		case err != nil:
			if e := (*Error)(nil); errors.As(err, &e) && e.Name == "InvalidProperty" {
				continue // this vCenter does not have it
			}
			return nil, err
		}

		if props == nil {
			props = make(properties)
		}

		maps.Copy(props, one[id])
	}

	if props != nil && len(large) > 0 {
		list, err := json.Marshal(large)
		if err != nil {
			return nil, err
		}
		props[unreadKey] = list
	}

	return props, nil
}

// retrieveResult is a response to RetrievePropertiesEx.
type retrieveResult struct {
	Objects []objectContent `json:"objects"`
}

// decodeBody decodes the response at once; only where that fails, object by object, for a large one is read twice then.
func (r *retrieveResult) decodeBody(body []byte) error {
	var whole struct {
		Objects []plainObject `json:"objects"`
	}
	if json.Unmarshal(body, &whole) != nil {
		return json.Unmarshal(body, r)
	}

	r.Objects = make([]objectContent, len(whole.Objects))
	for i := range whole.Objects {
		r.Objects[i] = objectContent(whole.Objects[i])
	}
	return nil
}

// objectContent is one object in the result of RetrievePropertiesEx.
type objectContent struct {
	Obj     moRef `json:"obj"`
	PropSet []struct {
		Name string          `json:"name"`
		Val  json.RawMessage `json:"val"`
	} `json:"propSet"`
	missingSet
	decodeErr error // why only Obj could be decoded
}

// UnmarshalJSON keeps what is malformed in one object from making the others unreadable.
func (o *objectContent) UnmarshalJSON(raw []byte) error {
	if err := json.Unmarshal(raw, (*plainObject)(o)); err != nil {
		*o = objectContent{Obj: objectOf(raw), decodeErr: err}
	}
	return nil
}

// plainObject is an objectContent that is decoded strictly.
type plainObject objectContent

// properties are those that it shows, by path.
func (o *objectContent) properties() properties {
	props := make(properties, len(o.PropSet))
	for _, p := range o.PropSet {
		props[p.Name] = p.Val
	}
	return props
}

// objectOf finds the object of an element that cannot be decoded as a whole.
func objectOf(raw []byte) moRef {
	var element struct {
		Obj json.RawMessage `json:"obj"`
	}
	var ref moRef
	_ = json.Unmarshal(raw, &element) // what cannot be read names nothing
	_ = json.Unmarshal(element.Obj, &ref)
	return ref
}

// retrieveOnce is one RetrievePropertiesEx, without regard to the size of its response.
func (c *Client) retrieveOnce(ctx context.Context, kind string, paths, ids []string) (map[string]properties, error) {
	spec := filterSpec{TypeName: "PropertyFilterSpec"}
	for _, id := range ids {
		spec.ObjectSet = append(spec.ObjectSet, objectSpec{TypeName: "ObjectSpec", Obj: refTo(kind, id)})
	}

	var result retrieveResult
	err := c.withSupportedProps(paths, func(paths []string) error {
		spec.PropSet = []propertySpec{propertiesOf(kind, paths)}
		return c.callVIM(ctx, propertyCollector, "PropertyCollector", "RetrievePropertiesEx", map[string]any{
			"specSet": []filterSpec{spec}, "options": map[string]any{"_typeName": "RetrieveOptions"}}, &result)
	})
	if err != nil {
		return nil, err
	}

	all := make(map[string]properties, len(result.Objects))
	for _, object := range result.Objects {
		if denied := object.denied(c.secrets.redactor()); len(ids) == 1 && len(object.PropSet) == 0 && denied != nil {
			return nil, denied.withCall("RetrievePropertiesEx", "", c.host)
		}

		if object.decodeErr != nil {
			if len(ids) == 1 {
				return nil, c.notUnderstood(
					&call{op: "RetrievePropertiesEx"}, &response{status: http.StatusOK}, object.decodeErr,
				)
			}
			continue
		}

		all[object.Obj.Value] = object.properties()
	}

	return all, nil
}

// missingSet is which properties a property collector could not read of an object, and why.
type missingSet struct {
	MissingSet []struct {
		Fault json.RawMessage `json:"fault"`
	} `json:"missingSet"`
}

// denied is the missing privilege for which properties could not be read; nil where that was not the reason.
func (m missingSet) denied(s redactor) *Error {
	for _, property := range m.MissingSet {
		if e := decodeError(0, property.Fault, s); e.Name == "NoPermission" {
			e.Sent = Refused
			return e
		}
	}
	return nil
}

// sessionLostIn finds NotAuthenticated among the reasons for missing properties: a property collector may say so that
// the session is gone, in a successful response.
func sessionLostIn(body []byte, s redactor) *Error {
	const lost = "NotAuthenticated"
	if !bytes.Contains(body, []byte(lost)) {
		return nil
	}

	var result struct {
		Objects   []missingSet `json:"objects"` // RetrieveResult
		FilterSet []struct {
			ObjectSet []missingSet `json:"objectSet"`
		} `json:"filterSet"` // UpdateSet
	}

	_ = json.Unmarshal(body, &result) // the caller finds out what cannot be decoded
	objects := result.Objects
	for _, filter := range result.FilterSet {
		objects = append(objects, filter.ObjectSet...)
	}

	for _, object := range objects {
		for _, property := range object.MissingSet {
			if e := decodeError(0, property.Fault, s); e.Name == lost {
				return e
			}
		}
	}

	return nil
}

// withSupportedProps calls fn with the paths that this vCenter has. When the fault InvalidProperty names one that it
// does not have, that one is remembered and left out, and fn is called again.
func (c *Client) withSupportedProps(paths []string, fn func(paths []string) error) error {
	for {
		have := c.unsupportedProps.without(paths)
		err := fn(have)
		var e *Error
		if err == nil || !errors.As(err, &e) || e.Name != "InvalidProperty" {
			return err
		}
		var data struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(e.Data, &data) != nil || !slices.Contains(have, data.Name) || len(have) == 1 {
			return err
		}

		c.unsupportedProps.add(data.Name)
	}
}
