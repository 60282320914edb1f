-- The health of a NASExperiment for Argo CD, from conditions in kstatus format. How to install it: docs/gitops.md
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has not seen this generation of the spec yet." }
end

local told = {}
for _, condition in ipairs(status.conditions or {}) do
  told[condition.type] = condition.status == "True"
  if condition.type == "Ready" then
    told.message = condition.reason .. ": " .. condition.message
  end
end

if told.Stalled then
  return { status = "Degraded", message = told.message }
elseif told.Ready then
  return { status = "Healthy", message = told.message }
elseif told.Reconciling then
  return { status = "Progressing", message = told.message }
end
-- Suspended by spec.suspend, or waiting for the cure that the message names.
return { status = "Suspended", message = told.message }
