output "name" {
  description = "Name of the cluster."
  value       = aws_eks_cluster.this.name
}

output "endpoint" {
  description = "Its API."
  value       = aws_eks_cluster.this.endpoint
}

output "dns" {
  description = "Address of the Service kube-dns, as places.yaml names it: the tenth of the services, which EKS gives it."
  value       = "${cidrhost(local.services, 10)}/32"
}

output "node_role" {
  description = "Role that Karpenter's EC2NodeClasses name."
  value       = aws_iam_role.node["karpenter"].name
}

output "node_security_group_id" {
  description = "Group of the nodes; the database lets it in."
  value       = aws_security_group.nodes.id
}

output "interruption_queue" {
  description = "Queue for Karpenter's setting interruptionQueue."
  value       = aws_sqs_queue.interruptions.name
}
