# Asks the API server for WorkflowExecutions by dry run: nothing is stored.
create() { printf '%s' "$1" | kubectl -n "$NAMESPACE" create --dry-run=server -f - 2>&1; }
must_be_refused() { # WHAT SPEC TEXT: TEXT is in the answer
  if answer=$(create "{\"apiVersion\":\"kubernaut.ai/v1alpha1\",\"kind\":\"WorkflowExecution\",\"metadata\":{\"generateName\":\"helm-test-\"},\"spec\":$2}"); then
    echo "$1 was admitted: $answer"; exit 1
  fi
  case $answer in
    *"$3"*) echo "refused, as it must be: $1" ;;
    *) echo "$1 was refused for another reason: $answer"; exit 1 ;;
  esac
}
must_be_refused 'a request without an engine' \
  '{"targetResource":"default/Deployment/web","workflowRef":{"workflowId":"none","version":"1.0.0"}}' executionEngine
# Only the webhook knows the catalog.
must_be_refused 'a workflow that is not in the catalog' \
  "{\"executionEngine\":\"job\",\"targetResource\":\"$NAMESPACE/Deployment/web\",\"workflowRef\":{\"workflowId\":\"no-such-workflow\",\"version\":\"1.0.0\",\"containerImage\":\"registry.example/none@sha256:0000000000000000000000000000000000000000000000000000000000000000\"}}" no-such-workflow
if [ -n "${REQUEST:-}" ]; then
  answer=$(create "$REQUEST") || { echo "tests.request was refused: $answer"; exit 1; }
  echo "admitted, as it must be: $answer"
else
  echo 'tests.request is not set: nothing was tried that must be admitted'
fi
