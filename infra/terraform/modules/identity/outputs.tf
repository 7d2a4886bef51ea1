output "role_arns" {
  description = "Role of each account, by namespace/account."
  value       = { for account, workload in local.workloads : "${workload.namespace}/${account}" => aws_iam_role.workload[account].arn }
}

output "ci_role_arn" {
  description = "Role that a build takes; null without ci."
  value       = one([for role in aws_iam_role.ci : role.arn])
}

output "secret_names" {
  description = "Secrets to be filled."
  value       = sort([for secret in aws_secretsmanager_secret.this : secret.name])
}
