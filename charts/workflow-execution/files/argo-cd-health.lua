-- Health of a WorkflowExecution for Argo CD. Skipped is Degraded: the workflow was asked for and has not run.
local health = { status = "Progressing", message = "no controller has seen it" }
if obj.status == nil or obj.status.phase == nil then
  return health
end
local phase = obj.status.phase
health.message = phase
if phase == "Succeeded" then
  health.status = "Healthy"
elseif phase == "Failed" then
  health.status = "Degraded"
  if obj.status.failureDetails ~= nil then
    health.message = obj.status.failureDetails.naturalLanguageSummary
  end
elseif phase == "Skipped" then
  health.status = "Degraded"
  if obj.status.skipDetails ~= nil then
    health.message = obj.status.skipDetails.message
  end
else
  for _, condition in ipairs(obj.status.conditions or {}) do
    if condition.type == "Blocked" and condition.status == "True" then
      health.message = condition.message
    end
  end
end
return health
