output "urls" {
  description = "Address of each repository, by name."
  value       = { for name, repository in aws_ecr_repository.this : name => repository.repository_url }
}

output "arns" {
  description = "The repositories."
  value       = [for repository in aws_ecr_repository.this : repository.arn]
}
