output "topic_arn" {
  description = "Topic of all alarms."
  value       = aws_sns_topic.alarms.arn
}

output "prometheus_workspace_arn" {
  description = "Managed workspace; null without."
  value       = one(aws_prometheus_workspace.this[*].arn)
}

output "prometheus_endpoint" {
  description = "Where Prometheus writes to (api/v1/remote_write) and Grafana reads; null without."
  value       = one(aws_prometheus_workspace.this[*].prometheus_endpoint)
}
