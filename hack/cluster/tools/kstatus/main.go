// Kstatus reads objects as JSON, one after the other, and prints for each what kstatus makes of it: a line of JSON
// with its status (InProgress, Failed, Current, Terminating, NotFound, Unknown) and why.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	if err := judge(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func judge(in io.Reader, out io.Writer) error {
	// An object's own decoder: it keeps whole numbers whole, as kstatus expects of metadata.generation.
	objects, verdicts := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var raw json.RawMessage
		if err := objects.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			return err
		}
		result, err := status.Compute(object)
		if err != nil {
			return err
		}
		if err := verdicts.Encode(map[string]string{
			"status":  result.Status.String(),
			"message": result.Message,
		}); err != nil {
			return err
		}
	}
}
